// Package transport opens the bus that the settings name.
package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/file"
	"github.com/wheelrefinery/refinery/bus/kafka"
	"github.com/wheelrefinery/refinery/bus/redis"
)

// Config chooses and configures a transport.
type Config struct {
	Backend      string       // "file", "redis", "kafka"
	Dir          string       // file: directory of the topics; created if missing
	RedisURL     string       // redis: such as redis://user:password@host:6379/0, rediss:// with TLS
	KafkaBrokers []string     // kafka: host:port of some brokers
	Owner        string       // redis, kafka: names this process; one with the name of a dead one has at once what that one held. Empty: random
	Logger       *slog.Logger // required
}

// Open connects to the transport that c names.
func Open(ctx context.Context, c Config) (bus.Bus, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.Logger == nil {
		return nil, errors.New("bus: Config.Logger is required")
	}
	switch c.Backend {
	case "file":
		return file.Open(c.Dir, c.Logger)
	case "redis":
		return redis.Open(ctx, c.RedisURL, c.Owner, c.Logger)
	case "kafka":
		return kafka.Open(ctx, c.KafkaBrokers, c.Owner, c.Logger)
	default:
		return nil, fmt.Errorf("bus: unknown queue backend %q: there are file, redis and kafka", c.Backend)
	}
}
