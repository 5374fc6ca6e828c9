"""Commands that have a file of their own; `cbsim.cli.command_line` imports each when it is named."""
