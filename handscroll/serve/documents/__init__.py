"""Documents: uploaded, turned into text by a process of their own, read once, asked as often as one likes, deleted."""
