"""The subcommands of `inferbase`, one module per noun."""
