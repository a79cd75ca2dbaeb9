"""Where a program is: what is said of it, how long it will take, and the line in which it is shown."""
