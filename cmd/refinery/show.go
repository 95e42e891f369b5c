package main

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/access"
	"github.com/wheelrefinery/refinery/internal/metrics"
	"github.com/wheelrefinery/refinery/policies"
	"github.com/wheelrefinery/refinery/projections"
	"github.com/wheelrefinery/refinery/writeapi"
)

// sources are what /metrics looks up. They are asked when everything runs.
func (p *plane) sources() metrics.Sources {
	return metrics.Sources{
		Reads:     func() projections.Querier { return p.reads },
		Standings: func(ctx context.Context) ([]eventlog.Standing, error) { return p.log.Standings(ctx) },
		Status:    func(ctx context.Context) ([]projections.Status, error) { return p.read.Status(ctx) },
		Bus:       func() ([]bus.Stats, error) { return p.bus.Stats() },
		Head:      func() int64 { return p.log.Head() },
	}
}

// told gives the log those who want to know what it does.
func (p *plane) told(o eventlog.Options) eventlog.Options {
	o.Appended = func(outcomes []eventlog.Outcome, n int, begin time.Time) {
		p.metrics.Appended(outcomes, n, begin)
		p.tracer.Appended(outcomes, n, begin)
	}
	o.Applied = func(follower string, batch []events.Recorded, begin time.Time) {
		p.metrics.Applied(follower, len(batch), begin)
		p.tracer.Applied(follower, batch, begin)
	}
	return o
}

// facts are what is known of the surroundings from the start on.
type facts struct {
	postgres string
	schema   int64
}

func lookUp(ctx context.Context, pool *pgxpool.Pool) (f facts, err error) {
	err = pool.QueryRow(ctx, `select current_setting('server_version'), (select max(version_id) from goose_db_version)`).Scan(&f.postgres, &f.schema)
	if err != nil {
		return f, fmt.Errorf("ask for the versions of Postgres and schema: %w", err)
	}
	return f, nil
}

// upstreams are where pip and uv are told of an index; the first that is set holds, for a worker of this process.
var upstreams = []string{"UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"}

// config is what /config tells: no credentials. tags are the workers'.
func (p *plane) config(tags []writeapi.Tags) api.Config {
	var python, platform string
	if len(tags) == 1 {
		python, platform = tags[0].Python, tags[0].Platform
	}
	c := api.Config{
		Version: version, QueueBackend: p.QueueBackend, IndexURL: strings.TrimSuffix(where(p.url()), "/") + "/simple/", Strategy: "pinned", Python: python, Platform: platform,
		Limits: map[string]int64{
			"lease_seconds": int64(policies.LeaseTime / time.Second), "header_seconds": int64(headerTime / time.Second), "header_bytes": headerBytes,
			"session_seconds": int64(access.SessionTime / time.Second), "page_items": 500, "body_bytes": api.MostBody,
			"write_connections": writeConns, "read_connections": readConns,
		},
		Versions: map[string]string{
			"refinery": version, "go": runtime.Version(), "postgres": p.facts.postgres, "schema": fmt.Sprint(p.facts.schema),
		},
		Environment: map[string]string{},
	}
	show(c.Environment, reflect.ValueOf(p.controlSettings))
	for _, name := range append(upstreams, "PIP_EXTRA_INDEX_URL", "UV_INDEX", "HTTP_PROXY", "HTTPS_PROXY", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER") {
		if v := os.Getenv(name); v != "" {
			c.Environment[name] = shown(name, v)
		}
	}
	for _, name := range upstreams {
		c.UpstreamIndex = cmp.Or(c.UpstreamIndex, c.Environment[name])
	}
	return c
}

// show adds every setting of a struct under the name of its variable.
func show(into map[string]string, settings reflect.Value) {
	for i := range settings.NumField() {
		f := settings.Type().Field(i)
		if name := f.Tag.Get("env"); name != "" {
			into[name] = shown(name, fmt.Sprint(settings.Field(i).Interface()))
		} else if f.Anonymous && f.Type.Kind() == reflect.Struct {
			show(into, settings.Field(i))
		}
	}
}

var secretName = regexp.MustCompile(`TOKEN|SECRET|PASSWORD|CREDENTIAL|KEY|WEBHOOK`)

// shown is a setting's value as others may see it: of a secret only whether it is set, of an address only what says where. A value that
// is not understood counts as a secret where it could be one.
func shown(name, value string) string {
	switch {
	case value == "":
		return ""
	case secretName.MatchString(name):
		return "set"
	case strings.Contains(value, "://"):
		parts := strings.FieldsFunc(value, func(r rune) bool { return r == ' ' || r == ',' })
		for i, part := range parts {
			parts[i] = where(part)
		}
		return strings.Join(parts, " ")
	case strings.Contains(value, "@"), strings.Contains(value, "="):
		return "set" // such as a DSN of the form host=… password=…
	}
	return value
}

// where is an address without user, password, query and fragment.
func where(address string) string {
	if name, rest, ok := strings.Cut(address, "="); ok && !strings.Contains(name, "/") { // uv's name=address
		address = rest
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return "set"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}
