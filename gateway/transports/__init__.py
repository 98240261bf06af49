"""Ways out to clients. A transport knows its protocol; what is sent, and when, is the connection's."""
