package main

import (
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// logName is the log's file in the data folder, of a program whose terminal shows something else.
const logName = "refinery.log"

// openLog logs into the data folder.
func (c controlSettings) openLog(dir string) (*slog.Logger, *os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, logName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, nil, fmt.Errorf("open the log: %w", err)
	}
	return c.logTo(f), f, nil
}

// logTo logs to w what holds no secret of the settings.
func (c controlSettings) logTo(w io.Writer) *slog.Logger {
	secrets := []string{c.WorkerToken, c.ReadToken}
	for _, address := range []string{c.PostgresDSN, c.RedisURL, c.WorkerWebhookURL} {
		if u, err := url.Parse(address); err == nil && u.User != nil {
			password, _ := u.User.Password()
			secrets = append(secrets, password)
		}
	}
	return c.logger(w, secrets...)
}

// hidden stands in the log where a secret was.
const hidden = "[hidden]"

var (
	queryToken = regexp.MustCompile(`([?&]token=)[^&\s"']+`)
	userInfo   = regexp.MustCompile(`(://)[^/@\s"']+@`)
)

// logger writes lines of the form and level that were asked for. Nothing is logged that holds a secret on purpose; this is for what an
// error of a library quotes.
func (s settings) logger(w io.Writer, secrets ...string) *slog.Logger {
	var pairs []string
	for _, secret := range secrets {
		if secret != "" {
			pairs = append(pairs, secret, hidden)
			if escaped := url.QueryEscape(secret); escaped != secret {
				pairs = append(pairs, escaped, hidden)
			}
		}
	}
	known := strings.NewReplacer(pairs...)
	clean := func(text string) string {
		text = known.Replace(text)
		if strings.Contains(text, "token=") {
			text = queryToken.ReplaceAllString(text, "${1}"+hidden)
		}
		if strings.Contains(text, "://") {
			text = userInfo.ReplaceAllString(text, "${1}"+hidden+"@")
		}
		return text
	}
	o := &slog.HandlerOptions{Level: s.level(), ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		switch a.Value.Kind() {
		case slog.KindString:
			a.Value = slog.StringValue(clean(a.Value.String()))
		case slog.KindAny:
			switch v := a.Value.Any().(type) {
			case error:
				a.Value = slog.StringValue(clean(v.Error()))
			case fmt.Stringer:
				a.Value = slog.StringValue(clean(v.String()))
			}
		}
		return a
	}}
	if s.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
