"""VPCs, subnets, internet gateways and route tables: the records, and what moto shows of them."""
