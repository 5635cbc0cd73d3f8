"""What the tests of scores and reports share."""
