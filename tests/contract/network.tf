# A module's own network with a machine in it, and a spot request: test_contract_terraform.py applies it.

terraform {
  required_providers {
    aws = { source = "hashicorp/aws" }
  }
}

provider "aws" {
  default_tags {
    tags = var.tags
  }
}

variable "prefix" { type = string }
variable "tags" { type = map(string) }
variable "ami" { type = string }
variable "instance_type" { type = string }
variable "key_name" { type = string }
variable "note" { default = "first" }
variable "public" { default = true }

data "aws_availability_zones" "here" {
  state = "available"
}

resource "aws_vpc" "main" {
  cidr_block           = "10.42.0.0/16"
  enable_dns_hostnames = true
  tags                 = { Name = "${var.prefix}-main", Note = var.note }
}

resource "aws_subnet" "public" {
  vpc_id                  = aws_vpc.main.id
  cidr_block              = cidrsubnet(aws_vpc.main.cidr_block, 8, 1)
  availability_zone       = data.aws_availability_zones.here.names[0]
  map_public_ip_on_launch = var.public
  tags                    = { Name = "${var.prefix}-public", Note = var.note }
}

resource "aws_subnet" "private" {
  vpc_id            = aws_vpc.main.id
  cidr_block        = cidrsubnet(aws_vpc.main.cidr_block, 8, 2)
  availability_zone = data.aws_availability_zones.here.names[1]
  tags              = { Name = "${var.prefix}-private" }
}

resource "aws_internet_gateway" "main" {
  vpc_id = aws_vpc.main.id
  tags   = { Name = "${var.prefix}-main", Note = var.note }
}

resource "aws_route_table" "public" {
  vpc_id = aws_vpc.main.id

  route {
    cidr_block = "0.0.0.0/0"
    gateway_id = aws_internet_gateway.main.id
  }

  tags = { Name = "${var.prefix}-public", Note = var.note }
}

resource "aws_route_table_association" "public" {
  subnet_id      = aws_subnet.public.id
  route_table_id = aws_route_table.public.id
}

resource "aws_route_table" "private" {
  vpc_id = aws_vpc.main.id
  tags   = { Name = "${var.prefix}-private" }
}

resource "aws_route" "elsewhere" {
  route_table_id         = aws_route_table.private.id
  destination_cidr_block = "198.51.100.0/24"
  gateway_id             = aws_internet_gateway.main.id
}

resource "aws_main_route_table_association" "private" {
  vpc_id         = aws_vpc.main.id
  route_table_id = aws_route_table.private.id
}

# Nothing in, nothing out, as it is kept in many accounts.
resource "aws_default_security_group" "none" {
  vpc_id = aws_vpc.main.id
}

resource "aws_security_group" "web" {
  name   = "${var.prefix}-web"
  vpc_id = aws_vpc.main.id

  ingress {
    from_port   = 22
    to_port     = 22
    protocol    = "tcp"
    cidr_blocks = ["127.0.0.0/8"]
  }

  egress {
    from_port   = 0
    to_port     = 0
    protocol    = "-1"
    cidr_blocks = ["0.0.0.0/0"]
  }

  tags = { Note = var.note }
}

resource "aws_instance" "web" {
  ami                    = var.ami
  instance_type          = var.instance_type
  key_name               = var.key_name
  subnet_id              = aws_subnet.public.id
  vpc_security_group_ids = [aws_security_group.web.id]
  depends_on             = [aws_route_table_association.public]
  tags                   = { Name = "${var.prefix}-web" }
}

resource "aws_network_interface" "second" {
  subnet_id       = aws_subnet.public.id
  private_ips     = ["10.42.1.200"]
  security_groups = [aws_security_group.web.id]
  description     = var.note
}

resource "aws_spot_instance_request" "build" {
  ami                            = var.ami
  instance_type                  = var.instance_type
  spot_type                      = "one-time"
  wait_for_fulfillment           = true
  instance_interruption_behavior = "terminate"
  subnet_id                      = aws_subnet.private.id
  vpc_security_group_ids         = [aws_security_group.web.id]
  tags                           = { Name = "${var.prefix}-build", Note = var.note }
}

output "vpc_id" { value = aws_vpc.main.id }
output "subnet_id" { value = aws_subnet.public.id }
output "instance_id" { value = aws_instance.web.id }
output "private_ip" { value = aws_instance.web.private_ip }
output "public_ip" { value = aws_instance.web.public_ip }
output "spot_request_id" { value = aws_spot_instance_request.build.id }
output "spot_instance_id" { value = aws_spot_instance_request.build.spot_instance_id }
