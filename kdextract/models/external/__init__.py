"""Networks of any origin: how they are named, whose code may run, how they are built, what they answer."""
