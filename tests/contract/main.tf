# What a platform engineer writes for one machine: test_contract_terraform.py applies it.

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
variable "user_data" { default = "first" }
variable "note" { default = "first" }
variable "data_gib" { default = 1 }

data "aws_vpc" "default" {
  default = true
}

# Not every zone has every type.
data "aws_ec2_instance_type_offerings" "zones" {
  location_type = "availability-zone"
  filter {
    name   = "instance-type"
    values = [var.instance_type]
  }
}

data "aws_subnets" "default" {
  filter {
    name   = "vpc-id"
    values = [data.aws_vpc.default.id]
  }
  filter {
    name   = "availability-zone"
    values = data.aws_ec2_instance_type_offerings.zones.locations
  }
}

data "aws_subnet" "first" {
  id = sort(data.aws_subnets.default.ids)[0]
}

resource "aws_key_pair" "deployer" {
  key_name   = "${var.prefix}-deployer"
  public_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA5saFnYGnUwNL9UPyc929LGOTXJo5uhKHDcTOqznQmn deployer"
}

resource "aws_security_group" "web" {
  name        = "${var.prefix}-web"
  description = "web servers"
  vpc_id      = data.aws_vpc.default.id

  ingress {
    description = var.note
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
}

resource "aws_security_group" "extra" {
  name   = "${var.prefix}-extra"
  vpc_id = data.aws_vpc.default.id
}

resource "aws_vpc_security_group_ingress_rule" "https" {
  security_group_id = aws_security_group.extra.id
  cidr_ipv4         = "10.0.0.0/8"
  from_port         = 443
  to_port           = 443
  ip_protocol       = "tcp"
  description       = var.note
}

resource "aws_iam_role" "web" {
  name = "${var.prefix}-web"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      { Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "ec2.amazonaws.com" } }
    ]
  })
  tags = { Note = var.note }
}

resource "aws_iam_policy" "read" {
  name = "${var.prefix}-read"
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "ec2:Describe*", Resource = "*" }]
  })
}

resource "aws_iam_role_policy_attachment" "read" {
  role       = aws_iam_role.web.name
  policy_arn = aws_iam_policy.read.arn
}

resource "aws_iam_role_policy_attachment" "ssm" {
  role       = aws_iam_role.web.name
  policy_arn = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_instance_profile" "web" {
  name = "${var.prefix}-web"
  role = aws_iam_role.web.name
}

resource "aws_instance" "web" {
  ami                         = var.ami
  instance_type               = var.instance_type
  key_name                    = aws_key_pair.deployer.key_name
  subnet_id                   = data.aws_subnet.first.id
  vpc_security_group_ids      = [aws_security_group.web.id, aws_security_group.extra.id]
  iam_instance_profile        = aws_iam_instance_profile.web.name
  user_data                   = var.user_data
  user_data_replace_on_change = true
  monitoring                  = var.note == "first"
  ebs_optimized               = true

  credit_specification {
    cpu_credits = "standard"
  }

  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 2
    instance_metadata_tags      = "enabled"
  }

  root_block_device {
    volume_type = "gp3"
    iops        = 3000
    throughput  = 125
    encrypted   = true
    tags        = { Name = "root" }
  }

  maintenance_options {
    auto_recovery = "default"
  }

  enclave_options {
    enabled = false
  }

  tags = { Name = "${var.prefix}-web", Note = var.note }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_ebs_volume" "data" {
  availability_zone = data.aws_subnet.first.availability_zone
  size              = var.data_gib
  type              = "gp3"
}

resource "aws_volume_attachment" "data" {
  device_name = "/dev/sdf"
  volume_id   = aws_ebs_volume.data.id
  instance_id = aws_instance.web.id
}

resource "aws_eip" "web" {
  domain = "vpc"
}

resource "aws_eip_association" "web" {
  instance_id   = aws_instance.web.id
  allocation_id = aws_eip.web.id
}

resource "aws_ssm_parameter" "address" {
  name  = "/${var.prefix}/address"
  type  = "String"
  value = aws_eip.web.public_ip
}

output "instance_id" { value = aws_instance.web.id }
output "address" { value = aws_eip.web.public_ip }
output "volume_id" { value = aws_ebs_volume.data.id }
output "group_id" { value = aws_security_group.extra.id }
