package limits

import (
	"context"
	"log/slog"
	"net"

	"github.com/redis/go-redis/v9"
)

// OpenRedisOver is OpenRedis over connections of another kind.
func OpenRedisOver(dial func() (net.Conn, error), log *slog.Logger) *Redis {
	return openRedis(&redis.Options{Addr: "redis.test:6379", Dialer: func(context.Context, string, string) (net.Conn, error) { return dial() }}, log)
}
