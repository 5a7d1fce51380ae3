"""Shows dbt's message as an import error in Airflow while the dbt project can't be parsed.

Meanwhile, Airflow uses the graph of the last good parse. This file defines no DAG.
"""

from busco.errors import BuscoError
from busco.settings import get_settings

message = get_settings().parse_error_path
if message.is_file():
    raise BuscoError(message.read_text().strip(), "until this is fixed, Airflow uses the graph of the last good parse")
