# SPDX-License-Identifier: AGPL-3.0-or-later
"""The front's configuration, made from ours: a pure function from settings to the text of nginx.conf.

The front speaks TLS, holds clients to their limits and times, compresses, serves the page, and hands everything else to
the core by one unix socket. It keeps the core's reason phrases (clients read errors there), so there is no HTTP/2.
Paths are those inside its jail.
"""

import ipaddress
from dataclasses import dataclass
from typing import Final

FRONT_FOLDER: Final = "/run/front"
"""The core's socket and this configuration; read only."""
RUN_FOLDER: Final = "/run/nginx"
"""The front's own: pid file, bodies that do not fit into memory."""
PAGE_FOLDER: Final = "/srv/page"
KEY_FILE: Final = "/run/tls/key.pem"
CERT_FILE: Final = "/run/tls/cert.pem"
CORE_SOCKET: Final = f"{FRONT_FOLDER}/api.sock"

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the page."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a numeric address and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Reads `ADDR:PORT`, with brackets around an IPv6 address. Raises ValueError."""
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"'{text}' is not of the form ADDRESS:PORT")
        bare = host.removeprefix("[").removesuffix("]")
        try:
            return cls(str(ipaddress.ip_address(bare)), int(port))
        except ValueError:
            raise ValueError(f"'{bare}' is not an IP address") from None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def any_version(self) -> bool:
        """Whether it stands for every address of this host, IPv4 and IPv6."""
        return self.host == "::"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What differs between fronts. Times are seconds."""

    listen: Address
    workers: int = 2
    connections_per_address: int = 256
    header_timeout: int = 15
    body_timeout: int = 30
    keepalive_timeout: int = 75
    answer_timeout: int = 90
    upload_timeout: int = 900


def configuration(settings: Settings) -> str:
    """The text of nginx.conf."""
    listen = f"{settings.listen}{' ipv6only=off' if settings.listen.any_version else ''} ssl"
    return _TEMPLATE.format(
        listen=listen,
        port=settings.listen.port,
        workers=settings.workers,
        connections=settings.connections_per_address,
        header_timeout=settings.header_timeout,
        body_timeout=settings.body_timeout,
        keepalive_timeout=settings.keepalive_timeout,
        answer_timeout=settings.answer_timeout,
        upload_timeout=settings.upload_timeout,
        run=RUN_FOLDER,
        page=PAGE_FOLDER,
        key=KEY_FILE,
        cert=CERT_FILE,
        core=CORE_SOCKET,
        policy=POLICY,
    )


_TEMPLATE: Final = r"""# Made by orrery at every start; changes are lost.
daemon off;
worker_processes {workers};
worker_rlimit_nofile 16384;
pid {run}/nginx.pid;
error_log stderr warn;

events {{
    worker_connections 4096;
}}

http {{
    types {{
        text/html html;
        text/css css;
        text/javascript js;
        image/svg+xml svg;
    }}
    default_type application/octet-stream;
    charset utf-8;
    access_log off;
    sendfile on;
    tcp_nopush on;
    server_tokens off;
    merge_slashes off;

    client_body_temp_path {run}/body;
    proxy_temp_path {run}/proxy;
    fastcgi_temp_path {run}/fastcgi;
    uwsgi_temp_path {run}/uwsgi;
    scgi_temp_path {run}/scgi;

    client_header_timeout {header_timeout}s;
    client_body_timeout {body_timeout}s;
    send_timeout 60s;
    keepalive_timeout {keepalive_timeout}s;
    keepalive_requests 10000;
    reset_timedout_connection on;
    client_header_buffer_size 4k;
    large_client_header_buffers 4 32k;
    limit_conn_zone $binary_remote_addr zone=address:4m;
    limit_conn address {connections};

    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {cert};
    ssl_certificate_key {key};
    ssl_session_cache shared:tls:4m;
    ssl_session_tickets off;

    gzip on;
    gzip_types application/json text/css text/javascript image/svg+xml;
    gzip_min_length 1024;
    gzip_comp_level 2;
    gzip_proxied any;

    map $http_host $authority {{
        '' $server_addr:{port};
        default $http_host;
    }}

    upstream core {{
        server unix:{core};
        keepalive 32;
    }}

    proxy_http_version 1.1;
    proxy_max_temp_file_size 0;
    proxy_buffers 16 32k;
    proxy_buffer_size 32k;
    proxy_busy_buffers_size 128k;
    proxy_connect_timeout 5s;
    proxy_send_timeout 60s;
    proxy_read_timeout {answer_timeout}s;
    proxy_pass_header Server;
    proxy_pass_header Date;
    # What the core may believe about the client comes from here alone.
    proxy_set_header Host $http_host;
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Forwarded-For "";
    proxy_set_header X-Transfer-Encoding $http_transfer_encoding;
    proxy_set_header X-Body-Length $content_length;
    proxy_set_header PVEClientIP "";
    proxy_set_header PVEDisableProxy "";
    proxy_set_header Connection "";
    proxy_set_header Upgrade "";

    server {{
        listen {listen};
        server_name _;
        # Room above the core's own limit of 512 KiB, so that the core says what is wrong.
        client_max_body_size 600k;
        error_page 413 = @too_large;
        error_page 497 = @plain_http;
        if ($request_method !~ ^(GET|HEAD|POST|PUT|DELETE|PATCH|OPTIONS)$) {{
            return 501;
        }}

        location / {{
            proxy_pass http://core;
        }}

        location = / {{
            root {page};
            try_files /index.html =404;
            add_header Content-Security-Policy "{policy}" always;
            add_header X-Content-Type-Options nosniff always;
            add_header Referrer-Policy no-referrer always;
            add_header Cache-Control no-cache always;
        }}

        location ^~ /page/ {{
            alias {page}/;
            add_header Content-Security-Policy "{policy}" always;
            add_header X-Content-Type-Options nosniff always;
            add_header Cache-Control no-cache always;
        }}

        location ~ ^/+api2/+[^/]+/+nodes/+[^/]+/+storage/+[^/]+/+upload/*$ {{
            client_max_body_size 0;
            proxy_request_buffering off;
            proxy_read_timeout {upload_timeout}s;
            proxy_pass http://core;
        }}

        location ~ ^/+api2/+[^/]+/.*/vncwebsocket/*$ {{
            proxy_set_header Host $http_host;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For "";
            proxy_set_header PVEClientIP "";
            proxy_set_header PVEDisableProxy "";
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $http_connection;
            proxy_buffering off;
            proxy_read_timeout 3600s;
            proxy_send_timeout 3600s;
            proxy_pass http://core;
        }}

        location @too_large {{
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Body-Length $content_length;
            proxy_set_header Connection "";
            proxy_pass http://core;
        }}

        location @plain_http {{
            if ($request_method !~ ^(GET|HEAD)$) {{
                return 308 https://$authority$request_uri;
            }}
            return 301 https://$authority$request_uri;
        }}
    }}
}}
"""
