"""Commands that have a file of their own; `cbsim.command_group` imports each when it is named."""
