package postgres

import (
	"errors"
	"strings"
	"testing"
)

func TestSupported(t *testing.T) {
	for platform, want := range map[string]bool{
		"linux/amd64": true, "linux/arm64": true, "darwin/arm64": true, "linux/ppc64le": true,
		"linux/s390x": false, "linux/riscv64": false, "linux/386": false, "freebsd/amd64": false, "": false,
	} {
		goos, goarch, _ := strings.Cut(platform, "/")
		err := supported(goos, goarch)
		if (err == nil) != want {
			t.Errorf("%s: %v", platform, err)
		}
		if err != nil && (!errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), platform+": set POSTGRES_DSN")) {
			t.Errorf("%s: the error does not say what to do: %v", platform, err)
		}
	}
}
