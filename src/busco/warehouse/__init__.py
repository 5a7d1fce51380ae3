"""Code that runs dbt or runs inside it: the runner, and the plugin behind the `lake` materialization."""
