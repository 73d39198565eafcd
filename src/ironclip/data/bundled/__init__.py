"""Small data sets that come with IronCLIP: nothing to fetch, the same bytes on every machine."""
