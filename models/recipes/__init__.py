"""Recipes, one file a system: functions that return a config."""
