// Command probe is what the node's tests run in pods: one subcommand per thing a pod can do or see.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const usage = `probe SUBCOMMAND
  exit CODE [MESSAGE]   write MESSAGE to the termination log and exit with CODE
  resolve NAME          print the addresses of NAME; retries for 60 s
  get URL               print status and body of an HTTP answer, with the pod's token and CA for https; retries for 60 s
  wait [CODE [MESSAGE]] run until SIGTERM, then write MESSAGE to the termination log and exit with CODE (default 0)
  allocate              take memory until the kernel ends the process
  write PATH            create a file; say why it is not possible
  serve PORT            answer HTTP requests with the host's name until SIGTERM
`

const (
	accountDir     = "/var/run/secrets/kubernetes.io/serviceaccount/"
	terminationLog = "/dev/termination-log"
	patience       = 60 * time.Second
)

func main() {
	if len(os.Args) < 2 {
		fail(2, usage)
	}
	args := os.Args[2:]
	run, known := map[string]func([]string){
		"exit": exit, "resolve": resolve, "get": get, "wait": wait, "allocate": allocate, "write": write, "serve": serve,
	}[os.Args[1]]
	if !known {
		fail(2, usage)
	}
	run(args)
}

func exit(args []string) {
	say(strings.Join(args[1:], " "))
	os.Exit(number(args[0]))
}

func resolve(args []string) {
	addresses := retry(func() ([]string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return net.DefaultResolver.LookupHost(ctx, args[0])
	})
	text := strings.Join(addresses, ",")
	fmt.Println(text)
	say(text)
}

func get(args []string) {
	request, err := http.NewRequest(http.MethodGet, args[0], nil)
	check(err)
	client := &http.Client{Timeout: 10 * time.Second}
	if request.URL.Scheme == "https" {
		token, err := os.ReadFile(accountDir + "token")
		check(err)
		authority, err := os.ReadFile(accountDir + "ca.crt")
		check(err)
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(authority)
		client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
		request.Header.Set("Authorization", "Bearer "+string(token))
	}
	text := retry(func() (string, error) {
		answer, err := client.Do(request)
		if err != nil {
			return "", err
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		return fmt.Sprintf("%d %s", answer.StatusCode, body), err
	})
	fmt.Println(text)
	say(text)
}

func wait(args []string) {
	ends := make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGTERM)
	fmt.Println("waiting")
	<-ends
	if len(args) > 1 {
		say(strings.Join(args[1:], " "))
	}
	if len(args) > 0 {
		os.Exit(number(args[0]))
	}
}

func allocate([]string) {
	var held [][]byte
	for {
		block := make([]byte, 8<<20)
		for at := 0; at < len(block); at += 4096 {
			block[at] = 1 // an untouched page takes no memory
		}
		held = append(held, block)
		fmt.Println(len(held)*8, "MiB")
	}
}

func write(args []string) {
	check(os.WriteFile(args[0], []byte("written"), 0o600))
	say("written")
}

func serve(args []string) {
	name, err := os.Hostname()
	check(err)
	handler := http.HandlerFunc(func(answer http.ResponseWriter, _ *http.Request) { fmt.Fprint(answer, name) })
	check(http.ListenAndServe(":"+args[0], handler))
}

func retry[T any](try func() (T, error)) T {
	end := time.Now().Add(patience)
	for {
		result, err := try()
		if err == nil {
			return result
		}
		fmt.Fprintln(os.Stderr, err)
		if time.Now().After(end) {
			fail(1, err.Error())
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		fail(1, err.Error())
	}
}

func fail(code int, text string) {
	fmt.Fprintln(os.Stderr, text)
	say(text)
	os.Exit(code)
}

// say leaves a termination message; outside a pod there is nowhere to leave it.
func say(text string) {
	if file, err := os.OpenFile(terminationLog, os.O_WRONLY|os.O_TRUNC, 0); err == nil {
		defer file.Close()
		fmt.Fprint(file, text)
	}
}
