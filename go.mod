module instantenv

go 1.24
