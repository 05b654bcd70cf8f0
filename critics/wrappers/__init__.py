"""Critics around any critic."""
