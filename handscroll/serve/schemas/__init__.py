"""What a request may hold, one file an endpoint. A field that is not named here is refused by its name."""
