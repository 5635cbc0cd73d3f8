"""What the tests of serving share."""
