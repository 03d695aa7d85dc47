"""What the control plane remembers: tables, transactions and queries."""
