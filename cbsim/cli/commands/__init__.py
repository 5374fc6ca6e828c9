"""Commands that have a file of their own; `cbsim.cli.command_group` imports each when it is named."""
