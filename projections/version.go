package projections

import (
	"regexp"
	"strings"

	version "github.com/aquasecurity/go-pep440-version"
)

var (
	plainVersion = regexp.MustCompile(`^(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*$`)
	localForm    = strings.NewReplacer("-", ".", "_", ".") // of what follows a +
	releaseForm  = regexp.MustCompile(`^([0-9]+!)?([0-9]+(?:\.[0-9]+)*)(.*)$`)
)

// VersionKey is the same for versions that PEP 440 calls equal, such as 1, 1.0 and v1.0.0. What is no version is its own.
func VersionKey(v string) string {
	if plainVersion.MatchString(v) {
		return withoutZeros(v)
	}
	parsed, err := version.Parse(v)
	if err != nil {
		return v
	}
	epoch, release, rest := SplitVersion(parsed.String())
	return epoch + release + localForm.Replace(rest)
}

// SplitVersion splits a normal form into epoch ("1!"), release without the zeros at its end, and the rest.
func SplitVersion(normal string) (epoch, release, rest string) {
	p := releaseForm.FindStringSubmatch(normal)
	if p == nil {
		return "", normal, ""
	}
	return p[1], withoutZeros(p[2]), p[3]
}

func withoutZeros(release string) string {
	for strings.HasSuffix(release, ".0") {
		release = strings.TrimSuffix(release, ".0")
	}
	return release
}
