"""Where images of a path or a name come from: folders, parquet files, tar shards, named sets."""
