module codexpool/e2e

go 1.26.0

require (
	codexpool v0.0.0
	github.com/google/go-cmp v0.7.0
)

require (
	github.com/caarlos0/env/v11 v11.4.2 // indirect
	github.com/joho/godotenv v1.5.1 // indirect
)

replace codexpool => ../
