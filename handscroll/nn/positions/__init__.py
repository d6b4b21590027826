"""Ways of telling positions: one small file each, named in `base/spec.py: POSITIONS`; families apply them."""
