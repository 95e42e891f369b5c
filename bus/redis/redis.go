// Package redis is the transport on Redis streams. A topic is some streams, its shards; a message goes to the shard of its key. The
// entries are those of watermill-redisstream. Of each group and shard one process reads, for as long as it holds a lease on it; it reads
// on its own account and stores what is passed in the stream's consumer group (decision 0020).
package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/delivery"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Times of a connection: a server that is gone is found out within seconds.
const (
	dialTime = 2 * time.Second
	callTime = 3 * time.Second
	loadTime = 30 * time.Second // that Open waits for a server that reads its data
)

// shards is how many streams a topic has. A higher number may be set while nothing is stored; with a lower one, what the others hold
// would be read by nobody.
func shards(topic string) int {
	switch topic {
	case bus.TopicCommands:
		return 64
	case bus.TopicBuildRequested:
		return 4
	case bus.TopicPoison:
		return 1
	}
	return 16
}

func streamName(topic string, shard int) string { return fmt.Sprintf("%s.%02d", topic, shard) }

// streamNames are the streams of a topic, in order.
func streamNames(topic string) []string {
	names := make([]string, shards(topic))
	for i := range names {
		names[i] = streamName(topic, i)
	}
	return names
}

func shardOf(topic, key string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key))
	return int(h.Sum32() % uint32(shards(topic)))
}

// Keys beside the streams. No topic's name has a colon.
const (
	topicsKey = "refinery:topics" // set of names
	checkKey  = "refinery:check"
)

func membersKey(topic, group string) string { return "refinery:members:" + topic + ":" + group }
func leasesKey(topic, group string) string  { return "refinery:leases:" + topic + ":" + group }

type redisBus struct {
	logger  *slog.Logger
	owner   string
	limits  delivery.Limits
	options *goredis.Options
	client  *goredis.Client
	ctx     context.Context // ends with the bus
	cancel  context.CancelFunc
	writer  *writer

	mu          sync.Mutex
	closed      bool
	topics      map[string]bool         // those that topicsKey names
	groups      map[groupName]*consumer // those with a subscription in this process
	members     map[groupName]int       // how many there were
	subscribers delivery.Subscribers[string]
}

type groupName struct{ topic, group string }

func init() {
	// go-redis writes to stderr by itself; what matters comes as errors.
	goredis.SetLogger(silent{})
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// Open connects to the Redis at url: redis://user:password@host:port/database, or rediss:// with TLS. It warns of settings of the server
// under which it may lose what it has accepted. Owner names this process among those that read: a new one with the name of a dead one has
// at once the shards that it held; two live ones must never share a name. Empty: a random name.
func Open(ctx context.Context, url, owner string, logger *slog.Logger) (bus.Bus, error) {
	return open(ctx, url, owner, logger, delivery.DefaultLimits())
}

func open(ctx context.Context, url, owner string, logger *slog.Logger, limits delivery.Limits) (*redisBus, error) {
	if owner == "" {
		owner = uuid.NewString()
	}
	if url == "" {
		return nil, fault.New(fault.Invalid, "the redis backend needs REDIS_URL, such as redis://127.0.0.1:6379/0")
	}
	o, err := goredis.ParseURL(url)
	if err != nil { // which may show the password
		return nil, fault.New(fault.Invalid, "REDIS_URL is not a URL of Redis: it is of the form redis://user:password@host:6379/0, or rediss:// with TLS")
	}
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = dialTime, callTime, callTime, callTime
	o.MaxRetries = -1 // who publishes hears of it, and nothing is applied twice behind his back
	o.DialerRetries = 1
	o.ContextTimeoutEnabled = true
	o.Protocol = 2
	o.DisableIdentity = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	if o.TLSConfig != nil {
		o.TLSConfig.MinVersion = tls.VersionTLS12
	}
	b := &redisBus{
		logger: logger, owner: owner, limits: limits, options: o, client: goredis.NewClient(o), topics: map[string]bool{},
		groups: map[groupName]*consumer{}, members: map[groupName]int{},
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	if err := b.look(ctx); err != nil {
		b.cancel()
		return nil, errors.Join(err, b.client.Close())
	}
	b.writer = startWriter(b)
	return b, nil
}

// look waits until the server answers, and looks at its settings.
func (b *redisBus) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loadTime)
	defer cancel()
	info, err := b.client.InfoMap(ctx, "server", "persistence", "memory", "replication").Result()
	for err != nil && goredis.HasErrorPrefix(err, "LOADING") && ctx.Err() == nil {
		time.Sleep(50 * time.Millisecond)
		info, err = b.client.InfoMap(ctx, "server", "persistence", "memory", "replication").Result()
	}
	if err != nil {
		return fault.New(fault.Unavailable, "Redis does not answer at %s: start it, or correct REDIS_URL: %w", b.options.Addr, err)
	}
	var major, minor int
	version := info["Server"]["redis_version"]
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err == nil && (major < 6 || major == 6 && minor < 2) {
		return fault.New(fault.Invalid, "Redis at %s is version %s: 6.2 is the oldest that will do", b.options.Addr, version)
	}
	if info["Replication"]["role"] == "slave" {
		return fault.New(fault.Invalid, "Redis at %s is a replica: REDIS_URL must name the one that takes writes", b.options.Addr)
	}
	warn := func(text string) { b.logger.Warn(text, "address", b.options.Addr) }
	switch fsync, err := b.client.ConfigGet(ctx, "appendfsync").Result(); {
	case info["Persistence"]["aof_enabled"] != "1":
		warn("Redis keeps messages in memory only: what it has accepted and nobody has handled is lost when it stops; set appendonly yes and appendfsync always")
	case err != nil: // hosted servers may refuse
		warn("Redis does not tell its appendfsync: unless it is always, a crash of its machine can lose commands that were accepted in the last second")
	case fsync["appendfsync"] != "always":
		warn("A crash of Redis's machine can lose commands that were accepted in the last second, or more: set appendfsync always")
	}
	if policy := info["Memory"]["maxmemory_policy"]; policy != "noeviction" && policy != "" && info["Memory"]["maxmemory"] != "0" {
		warn("Redis may drop messages that nobody has read when its memory is full: set maxmemory-policy noeviction")
	}
	return nil
}

// know makes a topic known to Stats.
func (b *redisBus) know(topic string) error {
	b.mu.Lock()
	known, closed := b.topics[topic], b.closed
	b.mu.Unlock()
	if closed {
		return bus.ErrClosed
	}
	if known {
		return nil
	}
	if err := bus.CheckName("topic", topic); err != nil {
		return err
	}
	if err := b.client.SAdd(b.ctx, topicsKey, topic).Err(); err != nil {
		return err
	}
	b.mu.Lock()
	b.topics[topic] = true
	b.mu.Unlock()
	return nil
}

func (b *redisBus) Publish(topic string, messages ...*message.Message) error {
	if err := b.know(topic); err != nil {
		if errors.Is(err, bus.ErrClosed) {
			return err
		}
		return fmt.Errorf("bus: publish to %s: %w", topic, err)
	}
	if len(messages) == 0 {
		return nil
	}
	p, size := publication{topic: topic, entries: make([]*goredis.XAddArgs, len(messages))}, 0
	for i, m := range messages {
		if err := bus.CheckMessage(topic, m); err != nil {
			return err
		}
		values, err := marshaller.Marshal(topic, m)
		if err != nil {
			return fmt.Errorf("bus: message %q: %w", m.UUID, err)
		}
		p.entries[i] = &goredis.XAddArgs{Stream: streamName(topic, shardOf(topic, m.Metadata.Get(bus.KeyMetadata))), Values: values}
		size += len(m.Payload)
	}
	if err := b.writer.Write(p, size); err != nil {
		if errors.Is(err, bus.ErrClosed) {
			return err
		}
		return fmt.Errorf("bus: publish to %s: %w", topic, err)
	}
	return nil
}

func (b *redisBus) Subscriber(group string) (message.Subscriber, error) {
	return b.subscribers.Add(b.ctx, group, func(topic string) (*delivery.Queue[string], func(), error) {
		c, err := b.join(topic, group)
		if err != nil {
			if !errors.Is(err, bus.ErrClosed) {
				err = fmt.Errorf("bus: subscribe to %s: %w", topic, err)
			}
			return nil, nil, err
		}
		return c.queue, func() { b.leave(c) }, nil
	})
}

// join adds a subscription to the group, which this process reads for while it has any.
func (b *redisBus) join(topic, group string) (*consumer, error) {
	if err := b.know(topic); err != nil {
		return nil, err
	}
	// Before anything else, so that what the group has not seen is kept. A new group starts at the oldest message.
	pipe := b.client.Pipeline()
	for _, stream := range streamNames(topic) {
		pipe.XGroupCreateMkStream(b.ctx, stream, group, "0")
	}
	cmds, err := pipe.Exec(b.ctx)
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil && !strings.HasPrefix(err.Error(), "BUSYGROUP") {
			return nil, err
		}
	}
	if len(cmds) == 0 && err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, bus.ErrClosed
	}
	c := b.groups[groupName{topic, group}]
	if c == nil {
		name := groupName{topic, group}
		c = newConsumer(b, topic, group, fmt.Sprintf("%s/%d", b.owner, b.members[name]))
		b.groups[name] = c
		b.members[name]++
		go c.run()
	}
	c.subscriptions++
	return c, nil
}

// leave takes a subscription away, whose results have all been sent. After the last one it returns when what is passed is stored and the
// leases are let go.
func (b *redisBus) leave(c *consumer) {
	b.mu.Lock()
	c.subscriptions--
	last := c.subscriptions == 0
	if last {
		delete(b.groups, groupName{c.topic, c.group})
	}
	b.mu.Unlock()
	if last {
		close(c.stop)
		<-c.stopped
	}
}

// Check writes something, with what publishing needs.
func (b *redisBus) Check(ctx context.Context) error {
	b.mu.Lock()
	closed := b.closed
	b.mu.Unlock()
	if closed {
		return bus.ErrClosed
	}
	if err := b.client.Set(ctx, checkKey, "1", time.Minute).Err(); err != nil {
		return fmt.Errorf("bus: Redis at %s: write: %w", b.options.Addr, err)
	}
	return nil
}

func (b *redisBus) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	b.mu.Unlock()
	err := b.subscribers.Close()
	b.writer.Close()
	b.cancel()
	return errors.Join(err, b.client.Close())
}
