module codexpool/e2e

go 1.26
