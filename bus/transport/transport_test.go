package transport

import (
	"context"
	"strings"
	"testing"

	"github.com/wheelrefinery/refinery/bus/bustest"
)

func TestOpen(t *testing.T) {
	log := bustest.Quiet(t).Logger()
	for _, backend := range []string{"", "File", "carrier-pigeon"} {
		if _, err := Open(t.Context(), Config{Backend: backend, Dir: t.TempDir(), Logger: log}); err == nil ||
			!strings.Contains(err.Error(), "file, redis and kafka") {
			t.Errorf("backend %q: error %v does not say what exists", backend, err)
		}
	}
	if _, err := Open(t.Context(), Config{Backend: "file", Logger: log}); err == nil {
		t.Error("no directory: no error")
	}
	for _, brokers := range [][]string{nil, {""}, {"127.0.0.1:1"}} {
		if _, err := Open(t.Context(), Config{Backend: "kafka", KafkaBrokers: brokers, Logger: log}); err == nil || !strings.Contains(err.Error(), "KAFKA_BROKERS") {
			t.Errorf("kafka at %q: error %v does not name the setting", brokers, err)
		}
	}
	for _, url := range []string{"", "carrier://pigeon", "redis://me:hunter2@[", "redis://me:hunter2@127.0.0.1:1/0"} {
		if _, err := Open(t.Context(), Config{Backend: "redis", RedisURL: url, Logger: log}); err == nil || !strings.Contains(err.Error(), "REDIS_URL") ||
			strings.Contains(err.Error(), "hunter2") {
			t.Errorf("redis at %q: error %v does not name the setting, or shows the password", url, err)
		}
	}
	if _, err := Open(t.Context(), Config{Backend: "file", Dir: t.TempDir()}); err == nil {
		t.Error("no logger: no error")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ended, Config{Backend: "file", Dir: t.TempDir(), Logger: log}); err == nil {
		t.Error("an ended context: no error")
	}
	b, err := Open(t.Context(), Config{Backend: "file", Dir: t.TempDir(), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}
