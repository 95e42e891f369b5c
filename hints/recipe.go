package hints

import (
	"regexp"
	"slices"
	"strings"

	version "github.com/aquasecurity/go-pep440-version"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// RecipeKinds lists every kind of recipe.
var RecipeKinds = []string{"apt", "dnf", "pip", "env", "constraint", "version"}

// Limits of a recipe.
const (
	mostItems = 100
	mostItem  = 1_000 // bytes
)

var (
	// Debian policy 5.6.1 and 5.6.12. Nothing ends in '-': for apt-get that is the order to remove the package.
	aptForm = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*[a-z0-9+](:[a-z0-9]([a-z0-9-]*[a-z0-9])?)?(=([0-9]+:)?[0-9]([A-Za-z0-9.+~-]*[A-Za-z0-9+~])?)?$`)
	// A name, with version, release and architecture where they are given, or a capability such as pkgconfig(libpq) that dnf looks up.
	dnfForm   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+~^-]*(\([A-Za-z0-9][A-Za-z0-9._+:-]*\))?$`)
	extraForm = regexp.MustCompile(`^\[[A-Za-z0-9._-]+(,[A-Za-z0-9._-]+)*\]`)
	// PEP 508 names, and after them specifiers.
	projectForm   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?`)
	specifierForm = regexp.MustCompile(`^ *(===|~=|==|!=|<=|>=|<|>) *([A-Za-z0-9.!+_-]+?)(\.\*)? *$`)
	releaseForm   = regexp.MustCompile(`^([0-9]+!)?[0-9]+(\.[0-9]+)*$`)
	seriesForm    = regexp.MustCompile(`^v?([0-9]+!)?[0-9]+\.[0-9]+`)
	fileForm      = regexp.MustCompile(`(?i)\.(whl|zip|egg|tar|tgz|tbz|txz|gz|bz2|xz|lz|lzma)$`) // what pip reads as a path
	variableForm  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	// Variables that decide which programs and libraries run, where they find their settings and whom they trust, or how the worker keeps a
	// build in its box.
	reservedForm = regexp.MustCompile(`^(?i:PATH|HOME|PWD|SHELL|USER|LOGNAME|TMPDIR|TMP|TEMP|ENV|BASH.*|IFS|CDPATH|PS4|VIRTUAL_ENV|TERM.*|LOCPATH|LANGUAGE|` +
		`LD_.*|DYLD_.*|GCONV_PATH|GLIBC_.*|MALLOC_.*|NLSPATH|HOSTALIASES|RES_OPTIONS|` +
		`PYTHON.*|PIP_.*|PIPX?_.*|UV_.*|PEP517.*|CONDA_.*|PDM_.*|POETRY_.*|REFINERY.*|` +
		`PERL.*|RUBY.*|NODE_.*|NPM_.*|JAVA_.*|_JAVA_.*|JDK_.*|GIT_.*|SSH_.*|GPG_.*|XDG_.*|SUDO_.*|APT_.*|DEBIAN_.*|DPKG_.*|` +
		`MAKEFLAGS|GNUMAKEFLAGS|MAKEFILES|MFLAGS|.*_WRAPPER|.*_LAUNCHER|CARGO_HOME|RUSTUP_.*|GOENV|GOFLAGS|GOPATH|GOPROXY|` +
		`COMPILER_PATH|GCC_EXEC_PREFIX|.*_PROXY|SSL_.*|OPENSSL_CONF|OPENSSL_MODULES|OPENSSL_ENGINES|.*_CA_BUNDLE|EDITOR|VISUAL|PAGER|BROWSER)$`)
)

// CheckRecipe says what is wrong with a recipe, by the grammar of its kind. What it lets through can be passed as an argument: no item is
// an option, a path or an address.
func CheckRecipe(k *fault.Checks, at string, r events.Recipe) {
	if !slices.Contains(RecipeKinds, r.Kind) {
		k.Check(false, at+"/kind", "is not one of %s", strings.Join(RecipeKinds, ", "))
		return
	}
	k.Check(len(r.Items) > 0, at+"/items", "is empty")
	checkList(k, at+"/items", r.Items, mostItems, func(at, item string) {
		if !text(item, mostItem) {
			k.Check(false, at, "is longer than %d bytes or not text", mostItem)
			return
		}
		detail := ""
		switch r.Kind {
		case "apt":
			if !aptForm.MatchString(item) {
				detail = "is not the name of a Debian package, with :architecture and =version where they are wanted"
			}
		case "dnf":
			if !dnfForm.MatchString(item) {
				detail = "is not the name of an RPM package or what it provides"
			}
		case "pip":
			if !requirement(item, true) {
				detail = "is not a project's name with version specifiers (PEP 508): addresses, paths, options and markers are not taken"
			}
		case "constraint":
			if !requirement(item, false) {
				detail = "is not a project's name with version specifiers (PEP 508): extras, addresses, paths, options and markers are not taken"
			}
		case "version":
			if !requirement(item, false) || !strings.ContainsAny(item, "<>=~!") {
				detail = "is not a project's name followed by version specifiers (PEP 440)"
			}
		case "env":
			detail = badAssignment(item)
		}
		k.Check(detail == "", at, "%s", detail)
	})
}

// requirement says whether s is a project's name, extras where they may be, and specifiers that PEP 440 knows.
func requirement(s string, extras bool) bool {
	name := projectForm.FindString(s)
	rest := strings.TrimLeft(s[len(name):], " ")
	if extras {
		rest = strings.TrimLeft(rest[len(extraForm.FindString(rest)):], " ")
	}
	if name == "" || fileForm.MatchString(name) || strings.HasSuffix(s, " ") {
		return false
	}
	return rest == "" || !slices.ContainsFunc(strings.Split(rest, ","), badSpecifier)
}

func badSpecifier(s string) bool {
	m := specifierForm.FindStringSubmatch(s)
	if m == nil {
		return true
	}
	operator, number, wildcard := m[1], m[2], m[3] != ""
	if _, err := version.Parse(number); err != nil {
		return true
	}
	exact := operator == "==" || operator == "!="
	return wildcard && (!exact || !releaseForm.MatchString(number)) ||
		strings.Contains(number, "+") && !exact && operator != "===" ||
		operator == "~=" && !seriesForm.MatchString(number)
}

func badAssignment(s string) string {
	name, value, ok := strings.Cut(s, "=")
	switch {
	case !ok || !variableForm.MatchString(name):
		return "is not an assignment such as NAME=value"
	case strings.ContainsAny(value, "\r\n"):
		return "has a value of more than one line"
	case reservedForm.MatchString(name):
		return "sets a variable that decides what runs or where: such a variable is not taken"
	}
	return ""
}
