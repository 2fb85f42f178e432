"""What orion_account does on a worker; the standard library only."""
