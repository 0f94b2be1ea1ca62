"""What the commands do, a file a group. Results go to standard output, progress and remarks to standard error.

Nothing else in the package prints. Heavy imports stand inside the functions, so that help comes at once.
"""
