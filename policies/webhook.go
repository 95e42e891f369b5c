package policies

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"github.com/wheelrefinery/refinery/internal/fault"
)

// webhookTime bounds one call, with everything.
const webhookTime = 10 * time.Second

// Webhook is an address that wakes workers elsewhere.
type Webhook struct {
	url, token string
	client     *http.Client
}

// NewWebhook checks the address. Unless linkLocal is set, no call goes to a link-local address or one where clouds keep credentials;
// what counts is the address that is dialled, whatever its name resolved to before.
func NewWebhook(address, token string, linkLocal bool) (*Webhook, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fault.New(fault.Invalid, "WORKER_WEBHOOK_URL is not an address of the form http://host:port/path or https://host/path")
	}
	dialer := &net.Dialer{Timeout: webhookTime, Control: func(_, address string, _ syscall.RawConn) error {
		if linkLocal {
			return nil
		}
		return dialable(address)
	}}
	return &Webhook{address, token, &http.Client{
		Timeout: webhookTime,
		Transport: &http.Transport{ // no proxy, which would dial in our place
			DialContext: dialer.DialContext, TLSHandshakeTimeout: webhookTime, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

var errForbidden = errors.New("the address is link-local, or one where a cloud keeps credentials: set WEBHOOK_ALLOW_LINK_LOCAL if that is meant")

// metadata are addresses where clouds keep credentials, beside the link-local one.
var metadata = []netip.Addr{
	netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("168.63.129.16"), netip.MustParseAddr("192.0.0.192"), netip.MustParseAddr("fd00:ec2::254"),
}

var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// dialable refuses what a webhook may not reach.
func dialable(address string) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: it is not an address", errForbidden)
	}
	a := at.Addr().WithZone("").Unmap()
	if nat64.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	if a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return errForbidden
	}
	for _, m := range metadata {
		if a == m {
			return errForbidden
		}
	}
	return nil
}

// call posts once. reason says why it failed, without the address, which may hold a secret.
func (w *Webhook) call(ctx context.Context) (status int, reason string) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader([]byte(`{"action":"drain"}`)))
	if err != nil {
		return 0, "the address cannot be called"
	}
	r.Header.Set("Content-Type", "application/json")
	if w.token != "" {
		r.Header.Set("X-Worker-Token", w.token)
	}
	answer, err := w.client.Do(r)
	if err != nil {
		return 0, why(err)
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10)) // only the status counts
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return answer.StatusCode, fmt.Sprintf("the webhook answered %d", answer.StatusCode)
	}
	return answer.StatusCode, ""
}

func why(err error) string {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.Is(err, errForbidden):
		return errForbidden.Error()
	case errors.As(err, &dns):
		return "the webhook's host name does not resolve"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the webhook refuses the connection"
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Sprintf("the webhook did not answer within %v", webhookTime)
	}
	return "the webhook cannot be reached, or does not speak HTTP"
}
