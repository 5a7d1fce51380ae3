"""Shows dbt's message as an import error in Airflow while the dbt project can't be parsed.

Until the project is fixed, Airflow uses the graph of the last successful parse. This file defines no DAG.
"""

from busco.errors import BuscoError
from busco.settings import get_settings

message = get_settings().parse_error_path
if message.is_file():
    hint = "until this is fixed, Airflow uses the graph of the last successful parse"
    raise BuscoError(message.read_text().strip(), hint)
