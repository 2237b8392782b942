"""The grader of programs: what a completion defines, and whether it passes the tests of its record."""
