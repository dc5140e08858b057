"""One colour per structure, everywhere: the light set in full, the dark one for pages.

The hues are those of Okabe and Ito, which stay apart under the common forms of colour
blindness, darkened (light set) or lightened (dark set) to a contrast of 3 with the paper and,
where they colour text (`…-text`), of 4.5.
"""

LIGHT = {
    "paper": "#ffffff",
    "panel": "#f6f7f8",
    "ink": "#1c2227",
    "muted": "#626c75",
    "line": "#dfe3e7",
    "stem": "#4a545d",
    "qk": "#2f6fb3",
    "vo": "#1a9678",
    "heads": "#b5558f",
    "hidden": "#ce7b17",
    "attention": "#2787a0",
    "dropped": "#b23b34",
    "removed": "#6b757e",
    "qk-text": "#2763a3",
    "vo-text": "#107358",
    "heads-text": "#9c3f78",
    "attention-text": "#1d6f86",
    "hidden-text": "#9a5a08",
    "dropped-text": "#a8332c",
    "muted-text": "#626c75",
}

DARK = {
    "paper": "#14181b",
    "panel": "#1b2024",
    "ink": "#e6e9ec",
    "muted": "#98a3ad",
    "line": "#2e353b",
    "stem": "#8b96a0",
    "qk": "#5b9ade",
    "vo": "#38b795",
    "heads": "#d783b5",
    "hidden": "#e5a045",
    "attention": "#4cb0c8",
    "dropped": "#e5736b",
    "removed": "#8b96a0",
    "qk-text": "#82b4ec",
    "vo-text": "#57cbab",
    "heads-text": "#e29cc5",
    "attention-text": "#6cc3d8",
    "hidden-text": "#edb468",
    "dropped-text": "#f08d86",
    "muted-text": "#98a3ad",
}


def style_variables(colours: dict[str, str]) -> str:
    """CSS declarations: `--qk: #…;` and so on."""
    return " ".join(f"--{name}: {value};" for name, value in colours.items())
