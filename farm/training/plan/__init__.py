"""The plan: lanes, slots, hours and price, from a base's plain facts."""
