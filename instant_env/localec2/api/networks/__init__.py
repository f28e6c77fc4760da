"""The actions on VPCs, subnets, internet gateways and route tables."""
