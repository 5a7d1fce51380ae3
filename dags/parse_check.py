"""Has dbt's message as its import error while the dbt project can't be parsed; Airflow shows the last good graph.

There is no DAG in here.
"""

from busco.errors import BuscoError
from busco.settings import get_settings

message = get_settings().parse_error_path
if message.is_file():
    raise BuscoError(message.read_text().strip(), "until then the graph is that of the last good parse")
