package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/wheelrefinery/refinery/bus/transport"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// settings are the flags and environment variables of every command that runs a part of the refinery.
type settings struct {
	DataDir   string `env:"DATA_DIR" placeholder:"DIR" help:"Folder of everything that is kept: database, bus, wheels, worker, log. Default: /var/lib/refinery for root, otherwise refinery in the user's data folder."`
	LogLevel  string `env:"LOG_LEVEL" default:"info" enum:"debug,info,warn,error" help:"Least level that is logged: debug, info, warn, error."`
	LogFormat string `env:"LOG_FORMAT" default:"text" enum:"text,json" help:"Form of the log's lines: text, json."`
}

// controlSettings are those of the control plane.
type controlSettings struct {
	settings
	PostgresDSN           string        `env:"POSTGRES_DSN" placeholder:"URL" help:"Postgres to use, such as postgres://user:password@host:5432/refinery. Empty: one is started in the data folder."`
	QueueBackend          string        `env:"QUEUE_BACKEND" default:"file" enum:"file,redis,kafka" help:"Transport of the bus: file, redis, kafka."`
	RedisURL              string        `env:"REDIS_URL" placeholder:"URL" help:"Redis, for QUEUE_BACKEND=redis, such as redis://user:password@host:6379/0; rediss:// with TLS."`
	KafkaBrokers          string        `env:"KAFKA_BROKERS" placeholder:"HOST:PORT,…" help:"Some brokers of Kafka, for QUEUE_BACKEND=kafka."`
	WorkerToken           string        `env:"WORKER_TOKEN" placeholder:"TOKEN" help:"Token that may do everything; with it, every write needs one. Empty, and no TOKENS_FILE: writes are open, so listen on loopback only."`
	ReadToken             string        `env:"READ_TOKEN" placeholder:"TOKEN" help:"Token for reads; with it, every read needs one. Empty: reads are open."`
	TokensFile            string        `env:"TOKENS_FILE" placeholder:"FILE" help:"Further tokens with names and scopes, a line each, as refinery token new prints it. Read again when it changes."`
	WorkerWebhookURL      string        `env:"WORKER_WEBHOOK_URL" placeholder:"URL" help:"Address that wakes remote workers: POST /worker/trigger posts there, with the token in X-Worker-Token."`
	WebhookAllowLinkLocal bool          `env:"WEBHOOK_ALLOW_LINK_LOCAL" help:"Let the webhook be at a link-local address, or at one where clouds keep credentials."`
	HTTPAddr              string        `env:"HTTP_ADDR" default:"127.0.0.1:8080" placeholder:"HOST:PORT" help:"Where the API and the index listen."`
	UIAddr                string        `env:"UI_ADDR" default:"127.0.0.1:3000" placeholder:"HOST:PORT" help:"Where the page listens; empty: no page."`
	MaxAttempts           int           `env:"MAX_ATTEMPTS" default:"3" help:"Attempts of a build that may fail, where hints bring recipes that may mend it. 1: none is tried again."`
	KeepOutcomes          time.Duration `env:"KEEP_OUTCOMES" default:"720h" help:"How long the outcomes of commands are kept, and so idempotency keys hold."`
	Roles                 []string      `kong:"-" env:"ROLES"` // of allRoles; none: all of them
	PublicURL             string        `env:"PUBLIC_URL" placeholder:"URL" help:"How others reach HTTP_ADDR, for links and workers. Default: http://HTTP_ADDR."`
}

// transport is where messages travel, of a control plane whose data is in dir.
func (c controlSettings) transport(dir, owner string, logger *slog.Logger) transport.Config {
	return transport.Config{
		Backend: c.QueueBackend, Dir: filepath.Join(dir, "bus"), RedisURL: c.RedisURL, Owner: owner, Logger: logger,
		KafkaBrokers: strings.FieldsFunc(c.KafkaBrokers, func(r rune) bool { return r == ',' || r == ' ' }),
	}
}

func (c controlSettings) url() string {
	if c.PublicURL != "" {
		return strings.TrimSuffix(c.PublicURL, "/")
	}
	return "http://" + reachable(c.HTTPAddr)
}

// reachable turns an address to listen on into one to connect to.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}

// workerSettings are those of a worker.
type workerSettings struct {
	Slots        int           `env:"WORKER_SLOTS" default:"0" help:"Jobs at once. 0: as many as there are CPUs."`
	Python       string        `env:"WORKER_PYTHON" placeholder:"PATH" help:"Interpreter that plans and builds. Default: the first of python3, python3.14 … python3.9 that will do."`
	BuildUser    string        `env:"BUILD_USER" placeholder:"USER" help:"User that builds, where the worker is root. Default: one for each build, with no account. 'root' builds as root: only for sources that you trust."`
	BuildTimeout time.Duration `env:"BUILD_TIMEOUT" default:"1h" help:"Longest that one build may take."`
	BuildMemory  int64         `env:"BUILD_MEMORY" default:"4096" help:"Memory of one build, in MiB."`
	BuildDisk    int64         `env:"BUILD_DISK" default:"10240" help:"Disk space of one build, in MiB."`

	AllowSystemPackages bool `env:"ALLOW_SYSTEM_PACKAGES" help:"Let recipes of hints install packages of this machine's distribution (apt, dnf). Needs root. Whoever can write hints then chooses what is installed."`
}

// dataDir returns the data folder, made if it was not there.
func (s settings) dataDir() (string, error) {
	dir := s.DataDir
	if dir == "" {
		dir = "/var/lib/refinery"
		if os.Geteuid() != 0 {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", fault.New(fault.Invalid, "no home folder is known: set DATA_DIR to a folder for the refinery's data")
			}
			dir = filepath.Join(cmp.Or(os.Getenv("XDG_DATA_HOME"), filepath.Join(home, ".local", "share")), "refinery")
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("data folder: %w", err)
	}
	// Others may pass through, since Postgres and builds run as other users where we are root; what is private is closed further down.
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fault.New(fault.Invalid, "the data folder cannot be made (%w): set DATA_DIR to one that can", err)
	}
	return dir, nil
}

func (s settings) level() slog.Level {
	var l slog.Level
	_ = l.UnmarshalText([]byte(s.LogLevel)) // kong has checked it
	return l
}
