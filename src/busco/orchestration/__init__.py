"""What runs inside Airflow: the graph, triggers that follow runners, and the tasks around them."""
