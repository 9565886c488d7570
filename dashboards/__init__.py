"""What is shown: Grafana dashboards and Prometheus rules as code, with the files they generate.

It imports no other room; metric names are its only bond with the agent.
"""
