package hints

import (
	"strings"
	"testing"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

func recipeErr(kind string, items ...string) *fault.Error {
	var k fault.Checks
	CheckRecipe(&k, "/r", events.Recipe{Kind: kind, Items: items})
	if err, ok := k.Err().(*fault.Error); ok {
		return err
	}
	return nil
}

func TestCheckRecipe(t *testing.T) {
	for _, c := range []struct {
		kind      string
		good, bad []string
	}{
		{
			"apt",
			[]string{"libc6:i386", "libpq-dev=15.18-0+deb12u1", "x11-utils:amd64=7.7+5", "python3.11", "libpq-dev", "g++", "libstdc++6", "0ad", "libffi-dev:arm64", "libpq-dev=15.5-0+deb12u1", "gcc:amd64=4:12.2.0-3", "libxml2-dev=2.9.14+dfsg-1.3~deb12u1"},
			[]string{
				"bash-", "bash:amd64-", "bash=5.2-", "bash=", "bash:", "a b", "./x.deb", "/tmp/x.deb", "x/stable", "*", "lib*", "lib?", "^lib", "lib$", "Bash", "a_b", "bash.", "bash=5.2.",
				"a", "Libpq", "libpq_dev", "libpq-dev/stable", "libpq-dev=", "libpq-dev:", "libpq-dev-", "libpq-dev:amd64-", "libpq-dev=1.0-", "libpq dev", ".hidden", "+x", "libpq-dev*", "libpq-dev=1.0;x", "./x.deb", "^x",
			},
		},
		{
			"dnf",
			[]string{"libpq-devel", "gcc-c++", "python3.11-devel", "ImageMagick-devel", "libpq-devel-15.5-1.el9.x86_64", "pkgconfig(libpq)", "perl(Test::More)", "libX11-devel", "foo_bar"},
			[]string{"a b", "@development", "(gcc or clang)", "/usr/bin/gcc", "gcc*", "gcc,clang", "x.rpm/", "pkgconfig(libpq", "https://files.example/x.rpm", ".x"},
		},
		{
			"pip",
			[]string{"wheel", "Cython<3", "setuptools >= 40.8, < 70", "numpy==1.26.*", "zope.interface~=5.0", "a!=1.0,!=1.1", "x===1.0", "setuptools-scm[toml]>=6", "a[b,c]", "torch==2.1.0+cpu", "x>=1!2.0", "y<3.0rc1", "z==1.0.post1"},
			[]string{
				"x @ https://files.example/x.whl", "https://files.example/x.tar.gz", "git+https://files.example/x", "./x", "x/y", "/x", "x.whl", "x-1.0.tar.gz", "x ", "-r x", "x;python_version<'3'", "x (>=1)",
				"x>=", "x=1", "x>1.x", "x>1.*", "~=1", "x~=1", "x==1,", "x==,", "x y", "[a]", "x[", "x[a", "x[]", "x||y", "x>=1 || <2", "x==1.0.dev1.*", "x<1+local", "x\t<1", "_x", "x_", "x-", "ä", "x --pre",
			},
		},
		{
			"constraint",
			[]string{"Cython<3", "setuptools<60", "numpy"},
			[]string{"x[a]<1", "x @ file:///x", "--no-binary=x", "-c x", "x<1; os_name"},
		},
		{
			"version",
			[]string{"aiohttp>=3.8.3", "bcrypt<4,>=3.2", "x!=1.0"},
			[]string{"aiohttp", ">=3.8.3", "aiohttp[speedups]>=1", "aiohttp newer"},
		},
		{
			"env",
			[]string{"CFLAGS=-O1 -g", "MAX_JOBS=1", "CMAKE_BUILD_PARALLEL_LEVEL=1", "SETUPTOOLS_USE_DISTUTILS=stdlib", "CC=gcc-11", "EMPTY=", "a=b=c", "LDFLAGS=-L/opt/lib -Wl,-rpath", "PKG_CONFIG_PATH=/opt/lib/pkgconfig", "SODIUM_INSTALL=system"},
			[]string{
				"A", "=x", "1A=x", "A B=c", "A-B=c", "A=b\nc", "A=b\r", "PATH=/x", "path=/x", "HOME=/x", "LD_PRELOAD=x", "LD_LIBRARY_PATH=/x", "ld_preload=x", "PYTHONPATH=/x", "PYTHONHOME=/", "PYTHON=x",
				"PIP_INDEX_URL=x", "PIPX_HOME=x", "UV_CACHE_DIR=/", "TMPDIR=/x", "USER=root", "LOGNAME=x", "VIRTUAL_ENV=/x", "SHELL=x", "IFS=x", "BASH_ENV=x", "BASH_FUNC_x=y", "ENV=x", "PS4=x", "GCONV_PATH=/x",
				"GLIBC_TUNABLES=x", "MALLOC_PERTURB_=1", "PERL5OPT=-Mx", "RUBYOPT=x", "NODE_OPTIONS=x", "npm_config_registry=x", "JAVA_TOOL_OPTIONS=x", "_JAVA_OPTIONS=x", "GIT_SSH_COMMAND=x", "SSH_ASKPASS=x",
				"MAKEFLAGS=--eval=x", "GNUMAKEFLAGS=x", "MAKEFILES=x", "RUSTC_WRAPPER=x", "CARGO_BUILD_RUSTC_WRAPPER=x", "CMAKE_C_COMPILER_LAUNCHER=x", "CARGO_HOME=/x", "RUSTUP_HOME=x", "GOFLAGS=-toolexec=x",
				"http_proxy=x", "HTTPS_PROXY=x", "ALL_PROXY=x", "NO_PROXY=x", "SSL_CERT_FILE=x", "REQUESTS_CA_BUNDLE=x", "OPENSSL_CONF=x", "COMPILER_PATH=/x", "GCC_EXEC_PREFIX=/x", "XDG_CONFIG_HOME=x",
			},
		},
	} {
		for _, item := range c.good {
			if err := recipeErr(c.kind, item); err != nil {
				t.Errorf("%s %q is refused: %v", c.kind, item, err)
			}
		}
		for _, item := range append(c.bad, "", "-", "-y", "--option", " x", "x\x00", "\x00", "x\xff", "x\n", "x\ny", "$(x)", "`x`", "x;y", "x|y", "x&y", "x>y", "../x", `x\y`, strings.Repeat("x", mostItem+1)) {
			err := recipeErr(c.kind, item)
			if err == nil || err.Code != fault.Invalid || len(err.Fields) != 1 || err.Fields[0].Pointer != "/r/items/0" {
				t.Errorf("%s %q: %v", c.kind, item, err)
				continue
			}
			if len(item) > 8 && strings.Contains(err.Fields[0].Detail, item) {
				t.Errorf("%s %q: the value is echoed", c.kind, item)
			}
		}
	}
}

func TestCheckRecipeShape(t *testing.T) {
	for pointer, err := range map[string]*fault.Error{
		"/r/kind":    recipeErr("brew", "x"),
		"/r/items":   recipeErr("apt"),
		"/r/items ":  recipeErr("pip", make([]string, mostItems+1)...),
		"/r/items/1": recipeErr("apt", "gcc", "-y", "make", "--"),
	} {
		if err == nil || err.Fields[0].Pointer != strings.TrimSpace(pointer) {
			t.Errorf("%s: %v", pointer, err)
		}
	}
	if err := recipeErr("apt", "gcc", "-y", "make", "--"); len(err.Fields) != 2 || err.Fields[1].Pointer != "/r/items/3" {
		t.Errorf("%+v", err.Fields)
	}
}
