"""The commands: one file each. They name options and call a verb; nothing heavy is imported before one starts."""
