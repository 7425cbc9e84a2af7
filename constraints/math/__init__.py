"""The algorithms behind the maps: no constraint in here."""
