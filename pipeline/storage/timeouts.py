"""How long the clients of all stores wait. With these a dead endpoint gives an error after about a minute."""

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30      # between two pieces of a body
REQUEST_TIMEOUT_S = 300  # for a whole object: obstore's default of 30 s cuts off 100 MB on a slow line
RETRIES = 6
RETRY_S = 60             # no retry begins later than this
