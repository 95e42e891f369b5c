package policies

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestDialable(t *testing.T) {
	for _, address := range []string{
		"169.254.169.254:80", "169.254.1.1:80", "[fe80::1%eth0]:80", "[::ffff:169.254.169.254]:80", "[64:ff9b::a9fe:a9fe]:80", "0.0.0.0:80", "[::]:80",
		"[fd00:ec2::254]:80", "100.100.100.200:80", "224.0.0.1:80", "[ff02::1]:80", "255.255.255.255:80", "nonsense",
	} {
		if err := dialable(address); !errors.Is(err, errForbidden) {
			t.Errorf("%s: %v", address, err)
		}
	}
	for _, address := range []string{"127.0.0.1:80", "[::1]:80", "10.0.0.1:80", "192.168.1.1:80", "93.184.216.34:443", "[2606:2800::1]:443"} {
		if err := dialable(address); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestNewWebhook(t *testing.T) {
	for _, address := range []string{"", "wake", "ftp://host/", "http://", "http:///path", "file:///etc/passwd", "http://a b/", "unix:/x"} {
		if _, err := NewWebhook(address, "", false); err == nil {
			t.Errorf("%q is taken", address)
		}
	}
}

// The name does not matter, only where it leads: the dial is refused, after the name was resolved, unless that is meant.
func TestWebhookDials(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {}))
	defer server.Close()
	w, err := NewWebhook(strings.Replace(server.URL, "127.0.0.1", "localhost", 1), "t", false)
	if err != nil {
		t.Fatal(err)
	}
	if status, reason := w.call(t.Context()); status != 200 || reason != "" {
		t.Errorf("%d %s", status, reason)
	}
	allowed, err := NewWebhook("http://169.254.169.254:1/", "", true)
	if err != nil {
		t.Fatal(err)
	}
	allowed.client.Timeout = 1e8
	if _, reason := allowed.call(t.Context()); reason == "" || strings.Contains(reason, "link-local") {
		t.Errorf("%q", reason)
	}
}
