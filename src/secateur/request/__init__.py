"""Requests: what a verb may be asked, as one dataclass each.

From its fields follow the verb's Python signature (`takes`), its options on the command line
(`secateur.cli.command`) and the help of both (`Say`). A request is built of parts that several
verbs share (`parts`). Nothing heavy is imported, so that help is quick.
"""
